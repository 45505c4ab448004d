// The RPC API of an IPFS node on loopback: js-ipfs, which serves the same commands as Kubo does.
// It has no peers and looks for none.
//
//   node rpc.mjs REPOSITORY        prints {"port": N}
//
// It ends with its stdin, so that it never outlives the tests.

// A package of the node needs this of Node.js 22; Node.js 20 lacks it. So the packages are imported
// after it, which only an import() does.
Promise.withResolvers ??= function () {
  let resolve, reject
  const promise = new this((yes, no) => {
    resolve = yes
    reject = no
  })
  return { promise, resolve, reject }
}

const { create } = await import('ipfs-core')
const { HttpApi } = await import('ipfs-http-server')

const [repo] = process.argv.slice(2)
const node = await create({
  repo,
  silent: true,
  offline: true,
  preload: { enabled: false },
  init: { emptyRepo: true, algorithm: 'Ed25519', profiles: ['test'] },
  config: {
    Addresses: { Swarm: [], API: '/ip4/127.0.0.1/tcp/0', Gateway: '' },
    Bootstrap: [],
    Discovery: { MDNS: { Enabled: false }, webRTCStar: { Enabled: false } },
    Pubsub: { Enabled: false },
    Routing: { Type: 'none' }
  }
})
const api = new HttpApi(node)
await api.start()
console.log(JSON.stringify({ port: api.apiAddr.nodeAddress().port }))

process.stdin.resume()
process.stdin.on('end', async () => {
  await api.stop()
  await node.stop()
  process.exit()
})
