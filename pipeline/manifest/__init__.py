"""The table of all videos: its columns, splits, label subsets and checks. Opens no video; prepare makes the table."""
