"""Cross-validation of several methods as one experiment: checked, run by Snakemake, resumed, compared."""
