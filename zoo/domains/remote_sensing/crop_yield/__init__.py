"""County crop yield from satellite time series: DFYP."""
