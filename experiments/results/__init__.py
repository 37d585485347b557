"""What runs leave behind: folders, summaries, tables, pages."""
