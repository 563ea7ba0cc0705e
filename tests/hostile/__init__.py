"""Files and names that were made to do harm, or damaged until they could."""
