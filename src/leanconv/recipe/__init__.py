"""The recipe: the whole YAML of a run, and the only configuration object there is.

A recipe names the network, how the images are read, how it is trained, and which techniques act, in their order::

    format_version: 1
    model: {name: plain, options: {width: 1.0}}
    data: {imgsz: 64, augment: flip_crop}
    training: {epochs: 10, batch: 32, lr: 0.05}
    techniques:
      separable: {}
      l2: {strength: 5.0e-4, form: lambda/2n, where: loss}

:func:`load` reads one by name or from a file, :func:`override` changes single values, :func:`dump` writes it again.
"""

from leanconv.recipe.changes import differences as differences
from leanconv.recipe.changes import only as only
from leanconv.recipe.changes import override as override
from leanconv.recipe.reading import dump as dump
from leanconv.recipe.reading import load as load
from leanconv.recipe.reading import names as names
from leanconv.recipe.reading import parse as parse
from leanconv.recipe.schema import FORMAT_VERSION as FORMAT_VERSION
from leanconv.recipe.schema import Data as Data
from leanconv.recipe.schema import Model as Model
from leanconv.recipe.schema import Recipe as Recipe
from leanconv.recipe.schema import Training as Training
