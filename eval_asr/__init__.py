"""eval_asr: run recognisers over corpora, and score them as the Open ASR Leaderboard does.

On the command line: ``python -m eval_asr run``, ``score``, ``compare``, ``report``. Importing this is light.
"""
