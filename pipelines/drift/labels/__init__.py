"""What arrived labels say of the champion, and what may be expected where they have not arrived."""
