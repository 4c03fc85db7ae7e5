package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

func newNodeRestored(b backend, c terminal) *cobra.Command {
	var flags configFlags
	cmd := &cobra.Command{
		Use:   "restored --config file",
		Short: "Bring a node back whose data were set back",
		Long: `Say that this node's primary was restored from a backup, that a standby without all transactions was
promoted, or that its slot or its stream is of no use any more. The slot is made if it is missing; when the
bridge starts next it takes back from the other nodes what is missing here, and goes on. Run it before users
write. All other nodes must be reachable then. docs/restore.md`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := noArguments(cmd, args); err != nil {
				return err
			}
			cfg, err := flags.load()
			if err != nil {
				return err
			}
			if err := b.restored(cmd.Context(), cfg, c.tell); err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.out, "node %s of cluster %s will be brought back: start its bridge\n", cfg.Node, cfg.Cluster)
			return err
		},
	}
	flags.add(cmd)
	return cmd
}
