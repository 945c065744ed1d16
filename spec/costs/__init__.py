"""What a run costs: who worked on it, when and on what, kept in the run; the sums of that; what it may cost."""
