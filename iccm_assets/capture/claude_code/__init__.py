"""Import the transcripts of Claude Code."""
