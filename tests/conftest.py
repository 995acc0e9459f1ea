"""How tests are run: a machine that stalls for a second fails none of them."""

from hypothesis import HealthCheck, settings

settings.register_profile("yatt", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("yatt")
