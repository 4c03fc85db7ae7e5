package main

import "github.com/spf13/cobra"

func newNode(b backend, c terminal) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "node",
		Short: "Say what has become of a node",
		Args:  cobra.ArbitraryArgs,
		RunE:  refuseUnknownCommand,
	}
	cmd.AddCommand(newNodeRestored(b, c))
	return cmd
}
