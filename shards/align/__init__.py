"""From a picture to aligned faces: decode, find, turn upright, cut out. The one way for build and predict.

Reading order: config, decode, geometry, detector, aligner, tracking.
"""

from shards.align.aligner import AlignedFace, Aligner, Alignment
from shards.align.config import AlignConfig
from shards.align.decode import ImageError, encode_jpeg, load_image
from shards.align.detector import FaceDetector, Faces
from shards.align.geometry import similarity_from_points, template_points, warp, warp_plane
from shards.align.tracking import FaceTracker

__all__ = [
    "AlignConfig",
    "AlignedFace",
    "Aligner",
    "Alignment",
    "FaceDetector",
    "FaceTracker",
    "Faces",
    "ImageError",
    "encode_jpeg",
    "load_image",
    "similarity_from_points",
    "template_points",
    "warp",
    "warp_plane",
]
