"""One network, many tissue tasks: instances of glands, lumina and nuclei, their classes, classes of patches."""

from zoo.families.cerberus.model import Cerberus
from zoo.families.cerberus.options import CerberusOptions

__all__ = ["Cerberus", "CerberusOptions"]
