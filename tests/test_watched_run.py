"""A run whose engine and trainer are not one model, on the real engines: it ends after its first step."""

from real_runs import make_place, rows, yatt

REWARD = """
def length(response):
    return len(response) / 10
"""


def test_an_engine_that_reads_the_model_otherwise_ends_the_run_in_its_first_step(tmp_path):
    """The engine is told of another epsilon of the norms than the folder's, which the trainer obeys."""
    place = make_place(tmp_path, REWARD, "length", cluster={"device": "cpu", "slots": 1, "threads": 1})
    engine = 'rollout.engine_args.hf_overrides={"rms_norm_eps": 0.5}'
    done = yatt(place, "train", "config.yaml", "run.name=other", engine, status=1)
    (row,) = rows(place, "other")
    assert row["step"] == 1 and row["fresh_tokens"] == row["trained_tokens"] > 100
    assert row["fresh_gap_mean"] == row["rollout_gap_mean"] > 0.01
    (complaint,) = [line for line in done.stderr.splitlines() if line.startswith("yatt: ")]
    assert "rounding in float32 stays under 0.001: they are not the same model" in complaint
    assert complaint.removeprefix("yatt: ") == row["warnings"][-1]
    run = place / "runs" / "other"
    assert "they are not the same model" in (run / "report.html").read_text() and not any(
        (run / "checkpoints").glob("step-*")
    )
