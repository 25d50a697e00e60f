"""Sphinx's settings. The site asks no other host for anything: mathematics is MathML, scripts and fonts are copies."""

import os
import sys
from pathlib import Path

import cnnlayers

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))
os.environ["CNNLAYERS_BACKEND"] = "numpy"  # the pages' outputs are those of NumPy wherever they are built

# The pages run under IPython's own settings, not the builder's, and without a kernel's notes on its connection.
PROFILE = HERE / "_build" / "ipython" / "profile_default"
PROFILE.mkdir(parents=True, exist_ok=True)
(PROFILE / "ipython_kernel_config.py").write_text("get_config().IPKernelApp.log_level = 40\n")
os.environ["IPYTHONDIR"] = str(PROFILE.parent)

project = "cnnlayers"
author = "cnnlayers developers"
copyright = author
release = cnnlayers.__version__
version = release

extensions = [
    "myst_nb",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx_copybutton",
    "sphinx_design",
    "docstrings",
    "mathml",
]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]
templates_path: list[str] = []
nitpicky = True
default_role = "py:obj"  # names in docstrings become links where there is such a name
nitpick_ignore_regex = [("py:obj", ".*")]
autosummary_generate = False

# Pages with code cells run while the site is built; an error in one ends the build.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_execution_show_tb = True
nb_merge_streams = True
nb_ipywidgets_js: dict[str, dict[str, str]] = {}
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 3

# The types of parameters stand in the docstrings, with shapes and dtypes.
autodoc_typehints = "none"
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
numpydoc_xref_param_type = False

html_theme = "pydata_sphinx_theme"
html_title = "cnnlayers"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "navigation_with_keys": False,
    "show_prev_next": True,
    "show_toc_level": 2,
    "navbar_align": "left",
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
html_sidebars = {"index": []}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
