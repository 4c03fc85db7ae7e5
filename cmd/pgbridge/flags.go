package main

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/pgbridge/pgbridge/config"
)

// configFlags are the flags of every verb that needs a configuration.
type configFlags struct {
	path string
	set  []string // key=value
}

func (f *configFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&f.path, "config", "c", "", "YAML `file`; without it every key comes from PGBRIDGE_ variables")
	cmd.Flags().StringArrayVar(&f.set, "set", nil, "override one `key=value`, such as log.level=debug; may be repeated")
	cmd.Args = noArguments
}

// load reads the configuration. Its errors ask for exit code 2.
func (f *configFlags) load() (*config.Config, error) {
	overrides := map[string]string{}
	for _, assignment := range f.set {
		key, value, ok := strings.Cut(assignment, "=")
		if !ok {
			return nil, usagef("--set %q is not key=value; write it as in --set log.level=debug", assignment)
		}
		overrides[key] = value
	}
	return config.Load(f.path, overrides)
}
