"""What the operator said: penstock.yaml and the policy files, read, checked, followed."""
