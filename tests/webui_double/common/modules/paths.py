"""Where models lie."""
import os

models_path = os.path.join(os.environ["HOST_DOUBLE_BASE"], "models")
