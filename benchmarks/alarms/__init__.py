"""False alarms and delay of the drift rule and its peers."""
