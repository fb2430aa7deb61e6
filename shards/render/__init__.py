"""The embedded default data set: rendered faces of people who do not exist.

Read in this order: `constants` (every choice), `mesh` (what all heads share), `chart` and `skin` (what is
painted on them), `attire`, `head` (one person), `actions` (expressions), `scene` (pose, light, surroundings),
`raster`, `shading`, `overlay`, `camera`, `picture` (all of it in one `render`), `faces` (the data set),
`sheet` (pictures for people). `extract_head` made the mesh's file.
"""

from shards.render.faces import RenderedFaces

__all__ = ["RenderedFaces"]
