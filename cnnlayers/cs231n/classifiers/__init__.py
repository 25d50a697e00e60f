"""The course's `classifiers` package."""
