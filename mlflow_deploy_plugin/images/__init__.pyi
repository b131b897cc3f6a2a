from .build import build_image as build_image
from .build import planned_image as planned_image
from .engine import image_sbom as image_sbom
from .engine import push_image as push_image

__all__: list[str]
