"""What is on the disk before anything is sent: the outbox and the history."""
