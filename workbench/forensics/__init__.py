"""What somebody else made of a model: a quantized checkpoint held against its original, matrix by matrix."""

from workbench.forensics.diffing import diff as diff
from workbench.forensics.diffing import diff_steps as diff_steps
