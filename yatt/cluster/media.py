"""Images in Ray's object store: shared memory of the node, one copy whatever the number of readers."""

from __future__ import annotations

import numpy as np
import ray

from yatt.types import Media


class RayMediaStore:
    """`MediaStore` of one controller. The object is freed when neither the controller nor a message names it."""

    def hold(self, data: np.ndarray) -> Media:
        return Media(handle=ray.put(data), nbytes=data.nbytes)
