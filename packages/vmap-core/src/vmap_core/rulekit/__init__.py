"""What rules are made of: the table, packs, and makers of rules for families of operators."""
