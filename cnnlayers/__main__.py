"""`python -m cnnlayers` is `cnnlayers`."""

from cnnlayers.cli import main

raise SystemExit(main())
