package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pgbridge/pgbridge/config"
)

func newSetup(b backend, c terminal) *cobra.Command {
	var flags configFlags
	var printSQL bool
	cmd := &cobra.Command{
		Use:   "setup --config file",
		Short: "Create on the primary what the bridge needs",
		Long: `Create schema pgbridge, publication, slot, replication origins and grants on the primary. What is there
already is left as it is, so it can be run again. With --print-sql nothing is changed: the statements
are printed for a DBA to run by hand.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := flags.load()
			if err != nil {
				return err
			}
			if printSQL {
				return b.printSetup(cmd.Context(), cfg, c)
			}
			if err := b.setup(cmd.Context(), cfg, c.tell); err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.out, "node %s of cluster %s is set up\n", cfg.Node, cfg.Cluster)
			return err
		},
	}
	flags.add(cmd)
	cmd.Flags().BoolVar(&printSQL, "print-sql", false, "print the statements instead of running them")
	return cmd
}

// printSetup writes a script for psql.
func (b backend) printSetup(ctx context.Context, cfg *config.Config, c terminal) error {
	statements, err := b.setupSQL(ctx, cfg)
	if err != nil {
		return err
	}
	var script strings.Builder
	fmt.Fprintf(&script, "-- pgbridge setup of node %s, cluster %s\n", cfg.Node, cfg.Cluster)
	for _, statement := range statements {
		fmt.Fprintf(&script, "\n%s;\n", strings.TrimRight(strings.TrimSpace(statement), ";"))
	}
	_, err = c.out.Write([]byte(script.String()))
	return err
}
