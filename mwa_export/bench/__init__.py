"""Time a bundle against its peers in one interleaved run."""
