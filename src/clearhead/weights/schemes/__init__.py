"""What each naming scheme needs beyond the layout table."""
