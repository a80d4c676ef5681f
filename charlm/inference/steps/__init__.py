"""Networks one character at a time: in PyTorch, or, several times as fast, in NumPy."""

import warnings

# Whoever reads logits that are not finite says so in a sentence. (np.errstate takes a tenth of a step's time.)
warnings.filterwarnings("ignore", r"(overflow|invalid value|underflow) encountered", RuntimeWarning, __name__)
