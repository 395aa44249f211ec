"""A fresh playlist for every user, every Monday: low risk, huge scale, stability first."""
