"""The table: millraced beside what a user would pick instead, and beside the machine's limits."""
