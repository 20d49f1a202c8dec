# A small service that answers in JSON and HTML.
require 'json'
require 'sinatra/base'
require 'erb'

class App < Sinatra::Base
  set :host_authorization, {} if respond_to?(:host_authorization)
  PRICES = { 'tea' => 3, 'coffee' => 4, 'cake' => 5 }.freeze
  PAGE = ERB.new('<ul><% PRICES.each do |name, price| %><li><%= name %>: <%= price %></li><% end %></ul>')

  get('/') { PAGE.result(binding) + "<p>#{PRICES.size} prices, Ruby #{RUBY_VERSION}" }

  get '/api/prices' do
    content_type :json
    JSON.generate(PRICES)
  end
end
