__version__ = "0.1.0"

import warnings

# fastai and timm call `torch.jit.script` when they are imported, which newer versions of PyTorch warn about.
warnings.filterwarnings('ignore', '`torch.jit.script` is (deprecated|not supported)', FutureWarning)
