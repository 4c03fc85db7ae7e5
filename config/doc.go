// Package config owns what an operator can set.
//
// A YAML file, the PGBRIDGE_ variables of the environment and the overrides of the command line come in;
// one checked [Config] goes out to bridge, which turns it into each part's own options. It is the only
// importer of viper. It knows nothing of what a setting does: no PostgreSQL, no NATS, no other package
// of this module.
//
// It holds the operator's side of invariants 6 and 7: a setting that would open a plaintext listener to
// other machines is refused unless the file says so in as many words, and nothing that was written is
// passed over in silence. An unknown key or variable is an error that names the nearest known one; a
// wrong value names its place, the key, the value and what is allowed. All problems are told at once.
//
// There are no goroutines and no state. Files are read in [Load] and never again; a secret file that is
// missing is a problem like any other. Secrets do not appear in errors or in [Config.String].
//
// Begin with keys.go: one table of keys drives the defaults, the names of the variables, the bounds, the
// nearest-key errors, docs/configure.md and config.example.yaml; tests hold the two files to it. Then
// load.go. Precedence is viper's: override, environment, file, default.
package config
