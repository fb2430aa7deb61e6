"""The embedded default data sets: rendered faces, and clips, of people who do not exist.

Read in this order: `constants` (every choice), `mesh` (what all heads share), `chart` and `skin` (what is
painted on them), `attire`, `head` (one person), `actions` (expressions), `scene` (pose, light, surroundings),
`raster`, `shading`, `overlay`, `camera`, `picture` (all of it in one `render`), `people` (who is in which
split), `faces` (the data set), `motion` and `clips` (the same people in colour, depth and thermal video),
`sheet` (pictures for people). `extract_head` made the mesh's file.
"""

from shards.render.clips import RenderedClips
from shards.render.faces import RenderedFaces

__all__ = ["RenderedClips", "RenderedFaces"]
