package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pgbridge/pgbridge/bridge"
	"github.com/pgbridge/pgbridge/config"
)

func newReload(b backend, c terminal) *cobra.Command {
	var flags configFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "reload --config file",
		Short: "Have the bridge that runs read its configuration again",
		Long: `Have the bridge that runs with this configuration read its file again, as SIGHUP does, and print what has changed.
Keys that docs/configure.md marks with reload change at once. If another key differs, or anything is wrong, nothing
changes: the answer names the keys that need a restart. Variables of the environment and --set count as they were when
the bridge was started.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := flags.load()
			if err != nil {
				return err
			}
			if flags.path == "" {
				return usagef("reload needs --config with the file that the bridge was started with")
			}
			done, err := b.reload(cmd.Context(), cfg, flags.path)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(c, done)
			}
			return printReloaded(c, done)
		},
	}
	flags.add(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printReloaded(c terminal, done *bridge.Reloaded) error {
	var text strings.Builder
	if len(done.Changed) == 0 {
		text.WriteString("nothing has changed\n")
	}
	for _, d := range done.Changed {
		text.WriteString(d.String() + "\n")
	}
	_, err := fmt.Fprint(c.out, text.String())
	return err
}

// source is where the configuration of these flags comes from, for a bridge that reads it again.
func (f *configFlags) source(asked <-chan os.Signal, changed func(*config.Config)) (*bridge.Source, error) {
	path := f.path
	if path != "" {
		var err error
		if path, err = filepath.Abs(path); err != nil {
			return nil, err
		}
	}
	return &bridge.Source{File: path, Load: f.load, Asked: asked, Changed: changed}, nil
}
