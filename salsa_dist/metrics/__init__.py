"""Error rates of transcripts, normalisers and statistics; imports nothing else of ours."""
