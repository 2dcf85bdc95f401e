"""Error rates of transcripts, what they compare, and the statistics on them: nothing else of ours."""
