"""adaptseg: semantic segmentation that must work in another domain, with no labels or very few.

Importing this package imports nothing heavy; `import adaptseg.networks`, `adaptseg.active` ... do.
"""

__version__ = "0.1.0"
