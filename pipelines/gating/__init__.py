"""Champion against challenger: pure decisions."""
