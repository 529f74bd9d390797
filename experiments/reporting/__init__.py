"""Reports rendered from rows and what belongs to them. Rows and counts are the truth; a report is never read back."""
