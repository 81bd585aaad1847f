"""What a conversion costs in recall: measure, judge, report."""
