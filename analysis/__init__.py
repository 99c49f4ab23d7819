"""What runs say: statistics, findings, figures, the report's sections. Pure functions that know no Trainer."""
