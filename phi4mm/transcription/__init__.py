"""Audio of any length to segments of text: find speech, cut at silences, decode in batches, judge, decode again."""
