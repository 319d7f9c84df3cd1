// Package resume is the edge's half of the protocol without a line, a disk or a
// clock: Session turns the hub's messages into actions, Window decides which
// report goes out next. edge/uplink drives both; tests/model drives them through
// every order of events. It never does what it decides, and nothing in it is
// remembered beyond one session: what lasts is in edge/store.
package resume
