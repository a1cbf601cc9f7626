"""The molecules that samples are drawn of, by name."""

MOLECULES = {
    # drugs
    "aspirin": "CC(=O)Oc1ccccc1C(=O)O",
    "ibuprofen": "CC(C)Cc1ccc([C@H](C)C(=O)O)cc1",
    "paracetamol": "CC(=O)Nc1ccc(O)cc1",
    "penicillin G": "CC1(C)S[C@@H]2[C@H](NC(=O)Cc3ccccc3)C(=O)N2[C@H]1C(=O)O",
    "ciprofloxacin": "O=C(O)c1cn(C2CC2)c2cc(N3CCNCC3)c(F)cc2c1=O",
    "metformin": "CN(C)C(=N)NC(=N)N",
    "diazepam": "CN1C(=O)CN=C(c2ccccc2)c2cc(Cl)ccc21",
    "warfarin": "CC(=O)CC(c1ccccc1)c1c(O)c2ccccc2oc1=O",
    "bromhexine": "CN(Cc1cc(Br)cc(Br)c1N)C1CCCCC1",
    "erlotinib": "C#Cc1cccc(Nc2ncnc3cc(OCCOC)c(OCCOC)cc23)c1",
    # natural products
    "caffeine": "CN1C=NC2=C1C(=O)N(C)C(=O)N2C",
    "nicotine": "CN1CCC[C@H]1c1cccnc1",
    "morphine": "CN1CC[C@]23c4c5ccc(O)c4O[C@H]2[C@@H](O)C=C[C@H]3[C@H]1C5",
    "quinine": "COc1ccc2nccc([C@@H](O)[C@@H]3C[C@@H]4CCN3C[C@@H]4C=C)c2c1",
    "glucose": "OC[C@H]1O[C@@H](O)[C@H](O)[C@@H](O)[C@@H]1O",
    "cholesterol": "CC(C)CCC[C@@H](C)[C@H]1CC[C@H]2[C@@H]3CC=C4C[C@@H](O)CC[C@]4(C)[C@H]3CC[C@]12C",
    "testosterone": "C[C@]12CC[C@H]3[C@@H](CCC4=CC(=O)CC[C@@]43C)[C@@H]1CC[C@@H]2O",
    "menthol": "CC(C)[C@@H]1CC[C@@H](C)C[C@H]1O",
    "limonene": "CC(=C)[C@@H]1CCC(C)=CC1",
    "vanillin": "COc1cc(C=O)ccc1O",
    "capsaicin": "COc1cc(CNC(=O)CCCC/C=C/C(C)C)ccc1O",
    "resveratrol": "Oc1ccc(/C=C/c2cc(O)cc(O)c2)cc1",
    "artemisinin": "C[C@@H]1CC[C@H]2[C@@H](C)C(=O)O[C@@H]3O[C@@]4(C)CC[C@@H]1[C@@]23OO4",
    "menadione": "CC1=CC(=O)c2ccccc2C1=O",
    # of living cells
    "dopamine": "NCCc1ccc(O)c(O)c1",
    "serotonin": "NCCc1c[nH]c2ccc(O)cc12",
    "tryptophan": "N[C@@H](Cc1c[nH]c2ccccc12)C(=O)O",
    "lactic acid": "C[C@H](O)C(=O)O",
    "thymine": "Cc1c[nH]c(=O)[nH]c1=O",
    "adenine": "Nc1ncnc2[nH]cnc12",
    # simple heterocycles
    "pyridine": "c1ccncc1",
    "thiophene": "c1ccsc1",
    "furfural": "O=Cc1ccco1",
    "indole": "c1ccc2[nH]ccc2c1",
    "benzothiazole": "c1ccc2scnc2c1",
    # charged, a salt, a group left open, and groups that are written like elements
    "acetylcholine": "CC(=O)OCC[N+](C)(C)C",
    "sodium benzoate": "[Na+].O=C([O-])c1ccccc1",
    "substituted phenol": "*c1ccc(O)cc1",
    "benzanilide, abbreviated": "O=C([Pb])N[Pb]",
    "substituted anisole": "COc1ccc([Y])cc1",
}
