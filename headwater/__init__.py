"""What people type and import: the `headwater` command. Nobody else imports this package."""
