// Package model checks the protocol between an edge and its hubs by running the
// code that decides (edge/resume, cloud/delivery, cloud/roster) in a world without
// sockets, disks and clocks, where everything that can happen happens:
//
//   - exhaustively (explore_test.go): every order of events in a small world,
//     breadth first, with mutants that prove that a fault would be found;
//   - at random (random_test.go): long histories in a larger world, over encoded
//     messages and both kinds of store;
//   - by script (scenario_test.go): single histories, written down in testdata with
//     every message that went over the line.
//
// It has tests only. Nothing here is called by the daemons.
package model
